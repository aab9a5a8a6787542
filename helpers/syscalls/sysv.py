# SPDX-License-Identifier: MIT
"""shmget(2), shmat(2), shmdt(2), shmctl(2)."""

from __future__ import annotations

from helpers.syscalls.call import ADDR, INT, SIZE, c_function

shmget = c_function("shmget", INT, SIZE, INT)
shmat = c_function("shmat", INT, ADDR, INT, restype=ADDR)
shmdt = c_function("shmdt", ADDR)
shmctl = c_function("shmctl", INT, INT, ADDR)
