"""A model of an address space under memory locking, and the machinery that compares it.

``python -m helpers.model --help`` runs scripts and random sequences; :mod:`helpers.model.script`
has the format, :mod:`helpers.model.space` the rules.
"""
