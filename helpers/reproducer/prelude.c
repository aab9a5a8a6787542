/*** page */
static long page; /* bytes in a page of the running kernel */

/*** failures */
SHARED int failures;

/*** verdict */
static int verdict(void)
{
	printf(failures ? "The fault is there.\n" : "The kernel did what the statement says.\n");
	return failures ? 1 : 0;
}

/*** report */
static void report(const char *what, const char *expected, const char *seen)
{
	int same = strcmp(expected, seen) == 0;

	printf("%s %s\n     expected %s\n     seen     %s\n", same ? "ok  " : "FAIL", what, expected, seen);
	if (!same)
		failures = 1;
}

/*** check_text */
static void check_text(const char *what, const char *seen, const char *expected)
{
	report(what, expected, seen);
}

/*** check_number */
static void check_number(const char *what, long seen, long expected)
{
	char left[24], right[24];

	snprintf(left, sizeof(left), "%ld", expected);
	snprintf(right, sizeof(right), "%ld", seen);
	report(what, left, right);
}

/*** check_call */
static void check_call(const char *call, long result, int expected, const char *name)
{
	const char *seen = result == -1 ? strerror(errno) : "success";

	report(call, name, (result == -1 ? errno : 0) == expected ? name : seen);
}

/*** SUCCEEDS */
#define SUCCEEDS(call) check_call(#call, (long)(call), 0, "success")

/*** FAILS */
#define FAILS(call, error) check_call(#call, (long)(call), error, #error)

/*** stop_if_failed */
static long stop_if_failed(const char *call, long result)
{
	if (result == -1) {
		printf("FAIL %s\n     expected success\n     seen     %s\n", call, strerror(errno));
		_exit(1);
	}
	return result;
}

/*** MUST */
#define MUST(call) stop_if_failed(#call, (long)(call))

/*** crashed */
static pid_t first_process;

static void crashed(int number)
{
	static const char text[] = "FAIL the program was killed by a signal\n";

	if (getpid() == first_process) {
		if (write(1, text, sizeof(text) - 1))
			_exit(1);
		_exit(1);
	}
	signal(number, SIG_DFL); /* a child dies of it */
}

/*** fenced */
/* A mapping with an inaccessible page on each side: no neighbour merges with it. */
static char *fenced(size_t size, int protection, int flags, int fd, off_t offset)
{
	char *fence = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *area;

	if (fence == MAP_FAILED)
		_exit(2);
	area = mmap(fence + page, size, protection, flags | MAP_FIXED, fd, offset);
	if (area == MAP_FAILED) {
		printf("FAIL mmap\n     expected success\n     seen     %s\n", strerror(errno));
		_exit(1);
	}
	return area;
}

/*** inaccessible */
static char *inaccessible(size_t size)
{
	char *area = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		_exit(2);
	return area;
}

/*** sys_mlock2 */
static long sys_mlock2(const void *addr, size_t length, unsigned int flags)
{
	return syscall(SYS_mlock2, addr, length, flags);
}

/*** touch */
/* Write the first byte of every page. */
static void touch(char *addr, size_t size, char byte)
{
	for (size_t at = 0; at < size; at += page)
		*(volatile char *)(addr + at) = byte;
}

/*** temporary_file */
/* A file that has no name any more; page n holds byte n. */
static int temporary_file(long pages)
{
	char path[] = "/var/tmp/case-XXXXXX";
	int fd = mkstemp(path);
	unsigned char byte;

	if (fd < 0)
		_exit(2);
	unlink(path);
	for (long n = 0; n < pages; n++)
		for (long at = 0; at < page; at++) {
			byte = n;
			if (at % 512 == 0) {
				unsigned char part[512];

				memset(part, byte, sizeof(part));
				if (pwrite(fd, part, sizeof(part), n * page + at) < 0)
					_exit(2);
			}
		}
	fdatasync(fd);
	return fd;
}

/*** memory_file */
static int memory_file(off_t size)
{
	int fd = memfd_create("case", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, size))
		_exit(2);
	return fd;
}

/*** secret_file */
static int secret_file(off_t size)
{
	int fd = syscall(447 /* memfd_secret */, O_CLOEXEC);

	if (fd < 0 || ftruncate(fd, size))
		_exit(2);
	return fd;
}

/*** opened_to_read */
static int opened_to_read(int file)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		_exit(2);
	return fd;
}

/*** uffd_enable */
static int uffd_enable(int fd, unsigned long features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	return ioctl(fd, UFFDIO_API, &api);
}

/*** uffd_register */
static int uffd_register(int fd, char *addr, size_t size, unsigned long mode)
{
	struct uffdio_register range = { { (unsigned long)addr, size }, mode, 0 };

	return ioctl(fd, UFFDIO_REGISTER, &range);
}

/*** uring_create */
static int uring_create(unsigned int entries)
{
	struct io_uring_params params;

	memset(&params, 0, sizeof(params));
	return syscall(425 /* io_uring_setup */, entries, &params);
}

/*** uring_register */
/* Pin a range as the fixed buffer of an instance. */
static int uring_register(int fd, char *addr, size_t size)
{
	struct iovec buffer = { addr, size };

	return syscall(427 /* io_uring_register */, fd, 0, &buffer, 1);
}

/*** uring_unregister */
static int uring_unregister(int fd)
{
	return syscall(427 /* io_uring_register */, fd, 1, NULL, 0);
}

/*** fill_file */
static long fill_file(int fd, int byte, size_t size, off_t offset)
{
	char part[512];

	memset(part, byte, sizeof(part));
	for (size_t at = 0; at < size; at += sizeof(part)) {
		size_t some = size - at < sizeof(part) ? size - at : sizeof(part);

		if (pwrite(fd, part, some, offset + at) < 0)
			return -1;
	}
	return 0;
}

/*** text */
static char *text(void)
{
	static char room[8][8192];
	static int next;

	next = (next + 1) % 8;
	room[next][0] = 0;
	return room[next];
}

/*** runs */
/* "11111111…" of more than 32 pages as "512x1". */
static char *runs(char *letters)
{
	char *found = text();
	size_t length = strlen(letters), at = 0, used = 0;

	if (length <= 32)
		return letters;
	while (at < length && used < 8000) {
		size_t same = strspn(letters + at, (char[]){ letters[at], 0 });

		used += sprintf(found + used, "%s%zux%c", used ? " " : "", same, letters[at]);
		at += same;
	}
	return found;
}

/*** open_proc */
/* A file in /proc of a process; 0 is this one. */
static int open_proc(pid_t pid, const char *name)
{
	char path[64];
	int fd;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	else
		snprintf(path, sizeof(path), "/proc/self/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		printf("FAIL %s cannot be opened: %s\n", path, strerror(errno));
		_exit(2);
	}
	return fd;
}

/*** read_line */
static struct {
	int fd;
	size_t at, have;
	char data[16384];
} source;

/* The next line of source.fd, without malloc: a process that locks all would lock that too. */
static int read_line(char *line, size_t size)
{
	size_t used = 0;

	for (;;) {
		if (source.at == source.have) {
			ssize_t got = read(source.fd, source.data, sizeof(source.data));

			if (got <= 0)
				return 0;
			source.at = 0;
			source.have = got;
		}
		char c = source.data[source.at++];
		if (c == '\n')
			break;
		if (used + 1 < size)
			line[used++] = c;
	}
	line[used] = 0;
	return 1;
}

/*** field_kb */
/* A line "Name:   32 kB" of a file in /proc. */
static long field_kb(pid_t pid, const char *file, const char *name)
{
	char line[256];
	long value = -1;
	size_t length = strlen(name);

	source.fd = open_proc(pid, file);
	source.at = source.have = 0;
	while (value < 0 && read_line(line, sizeof(line)))
		if (strncmp(line, name, length) == 0 && line[length] == ':')
			value = strtol(line + length + 1, NULL, 10);
	close(source.fd);
	return value;
}

/*** status_kb */
static long status_kb(pid_t pid, const char *name)
{
	return field_kb(pid, "status", name);
}

/*** vmlck_kb */
static long vmlck_kb(pid_t pid)
{
	return status_kb(pid, "VmLck");
}

/*** vmlck_pages */
/* VmLck of /proc/PID/status, in pages. */
static long vmlck_pages(pid_t pid)
{
	return vmlck_kb(pid) * 1024 / page;
}

/*** rollup_kb */
static long rollup_kb(pid_t pid, const char *name)
{
	return field_kb(pid, "smaps_rollup", name);
}

/*** vma */
struct vma {
	unsigned long start, end, offset;
	char perms[8];
	const char *lock; /* of VmFlags: "", "lo", "lo lf" (lf is ?? before 6.2) */
	long locked_kb;
};

/*** next_vma */
/* The next VMA of the smaps that is open. */
static int next_vma(struct vma *vma)
{
	char line[1024];
	int started = 0;

	while (read_line(line, sizeof(line))) {
		if (!started) {
			started = sscanf(line, "%lx-%lx %7s %lx", &vma->start, &vma->end, vma->perms,
					 &vma->offset) == 4;
			vma->locked_kb = 0;
		} else if (strncmp(line, "Locked:", 7) == 0) {
			vma->locked_kb = strtol(line + 7, NULL, 10);
		} else if (strncmp(line, "VmFlags:", 8) == 0) {
			int lo = strstr(line, " lo") != NULL;
			int lf = strstr(line, " lf") || (lo && strstr(line, " ??"));

			vma->lock = lo ? lf ? "lo lf" : "lo" : lf ? "lf" : "";
			return 1;
		}
	}
	return 0;
}

/*** open_smaps */
static void open_smaps(pid_t pid)
{
	source.fd = open_proc(pid, "smaps");
	source.at = source.have = 0;
}

/*** lo_kb */
/* Summed size of the VMAs that are lo: what VmLck must be. */
static long lo_kb(pid_t pid)
{
	struct vma vma;
	long sum = 0;

	open_smaps(pid);
	while (next_vma(&vma))
		if (strncmp(vma.lock, "lo", 2) == 0)
			sum += (vma.end - vma.start) / 1024;
	close(source.fd);
	return sum;
}

/*** describe */
/* The VMAs of a range, "0-6 lo, 7-8 -" in pages of it, as it is asked for. */
static char *describe(pid_t pid, const char *from, size_t size, int perms, int offset, int join)
{
	unsigned long low = (unsigned long)from, high = low + size;
	long first = 0, last = -1;
	const char *before = NULL;
	struct vma vma;
	char *found = text(), *tail = found;
	size_t room = 8192;

	open_smaps(pid);
	while (next_vma(&vma) && vma.start < high) {
		long start, end;

		if (vma.end <= low || (size_t)(tail - found) > room - 128)
			continue;
		start = vma.start < low ? 0 : (vma.start - low) / page;
		end = ((vma.end < high ? vma.end : high) - low) / page;
		if (join && last == start && strcmp(before, vma.lock) == 0)
			start = first;
		else
			tail = found + strlen(found);
		tail[0] = 0;
		sprintf(tail, "%s%ld-%ld", tail == found ? "" : ", ", start, end);
		if (perms)
			sprintf(tail + strlen(tail), " %s", vma.perms);
		if (offset)
			sprintf(tail + strlen(tail), " @%ld", (long)(vma.offset / page));
		sprintf(tail + strlen(tail), " %s", *vma.lock ? vma.lock : "-");
		first = start;
		last = end;
		before = vma.lock;
	}
	close(source.fd);
	return found;
}

/*** layout */
/* First and last + 1 page of each VMA of a range, and its lock. */
static char *layout(pid_t pid, const char *from, size_t size)
{
	return describe(pid, from, size, 0, 0, 0);
}

/*** locks */
/* The same, neighbours with the same lock taken together. */
static char *locks(pid_t pid, const char *from, size_t size)
{
	return describe(pid, from, size, 0, 0, 1);
}

/*** pieces */
/* The same as layout, with permissions and the page of the file. */
static char *pieces(pid_t pid, const char *from, size_t size)
{
	return describe(pid, from, size, 1, 1, 0);
}

/*** letters */
/* The lock of each page: - none, L lo, F lo and lf. */
static char *letters(pid_t pid, const char *from, size_t size)
{
	unsigned long low = (unsigned long)from, high = low + size;
	struct vma vma;
	char *found = text();

	memset(found, '-', size / page);
	found[size / page] = 0;
	open_smaps(pid);
	while (next_vma(&vma) && vma.start < high) {
		unsigned long at = vma.start < low ? low : vma.start;

		for (; at < vma.end && at < high && strncmp(vma.lock, "lo", 2) == 0; at += page)
			found[(at - low) / page] = vma.lock[2] ? 'F' : 'L';
	}
	close(source.fd);
	return runs(found);
}

/*** accounting */
/* Locked pages by each witness: VmLck, VMAs that are lo, Locked of smaps and of smaps_rollup. */
static char *accounting(pid_t pid, const char *from, size_t size)
{
	char *found = text();
	struct vma vma;
	double unit = page / 1024.0;
	long lo = 0, locked = 0, vmlck = vmlck_kb(pid);

	open_smaps(pid);
	while (next_vma(&vma)) {
		if (strncmp(vma.lock, "lo", 2) != 0)
			continue;
		lo += (vma.end - vma.start) / 1024;
		locked += vma.locked_kb;
	}
	close(source.fd);
	sprintf(found, "VmLck %.12g, lo %.12g, Locked %.12g, rollup %.12g, pages ", vmlck / unit, lo / unit,
		locked / unit, rollup_kb(pid, "Locked") / unit);
	strncat(found, letters(pid, from, size), 4096);
	return found;
}

/*** witnesses_agree */
/* VmLck is the sum of the VMAs that are lo. */
static int witnesses_agree(pid_t pid)
{
	return vmlck_kb(pid) == lo_kb(pid);
}

/*** vma_lock */
/* The lock of the VMA at an address, and its permissions. */
static char *vma_lock(pid_t pid, const char *addr)
{
	struct vma vma;
	char *found = text();

	strcpy(found, "not mapped");
	open_smaps(pid);
	while (next_vma(&vma))
		if (vma.start <= (unsigned long)addr && (unsigned long)addr < vma.end)
			sprintf(found, "%s %s", vma.perms, *vma.lock ? vma.lock : "-");
	close(source.fd);
	return found;
}

/*** mappings */
/* The VMAs of a range, in bytes of it. */
static char *mappings(pid_t pid, const char *from, size_t size)
{
	unsigned long low = (unsigned long)from, high = low + size;
	struct vma vma;
	char *found = text();

	open_smaps(pid);
	while (next_vma(&vma) && vma.start < high)
		if (vma.end > low && strlen(found) < 8000)
			sprintf(found + strlen(found), "%s%ld-%ld %s", *found ? ", " : "",
				(long)((vma.start > low ? vma.start - low : 0) / page),
				(long)(((vma.end < high ? vma.end : high) - low) / page), vma.perms);
	close(source.fd);
	return found;
}

/*** pagemap */
/* Documentation/admin-guide/mm/pagemap.rst: bit 63 present, 61 file or shared, 0-54 the PFN. */
static uint64_t pagemap(pid_t pid, const char *addr)
{
	uint64_t word = 0;
	int fd = open_proc(pid, "pagemap");

	if (pread(fd, &word, 8, (off_t)((unsigned long)addr / page * 8)) != 8)
		word = 0;
	close(fd);
	return word;
}

/*** present */
/* Which pages are mapped: "1101". */
static char *present(pid_t pid, const char *from, size_t size)
{
	char *found = text();

	for (size_t n = 0; n < size / page; n++) {
		found[n] = pagemap(pid, from + n * page) >> 63 ? '1' : '0';
		found[n + 1] = 0;
	}
	return runs(found);
}

/*** present_pages */
static long present_pages(pid_t pid, const char *from, size_t size)
{
	long count = 0;

	for (size_t at = 0; at < size; at += page)
		count += pagemap(pid, from + at) >> 63;
	return count;
}

/*** anonymous */
/* Which pages are mapped and neither a file's nor shared. */
static char *anonymous(pid_t pid, const char *from, size_t size)
{
	char *found = text();

	for (size_t n = 0; n < size / page; n++) {
		uint64_t word = pagemap(pid, from + n * page);

		found[n] = word >> 63 && !(word >> 61 & 1) ? '1' : '0';
		found[n + 1] = 0;
	}
	return runs(found);
}

/*** resident */
/* Which pages mincore(2) calls resident. */
static char *resident(char *from, size_t size)
{
	char *found = text();

	for (size_t n = 0; n < size / page; n++) {
		unsigned char byte = 0;

		if (mincore(from + n * page, page, &byte))
			byte = 2; /* shown as an error */
		found[n] = byte & 2 ? 'E' : byte & 1 ? '1' : '0';
		found[n + 1] = 0;
	}
	return runs(found);
}

/*** resident_pages */
static long resident_pages(char *from, size_t size)
{
	long count = 0;

	for (size_t at = 0; at < size; at += page) {
		unsigned char byte = 0;

		if (mincore(from + at, page, &byte) == 0)
			count += byte & 1;
	}
	return count;
}

/*** by_pfn */
/* An entry of /proc/kpageflags or /proc/kpagecount. */
static uint64_t by_pfn(const char *path, uint64_t pfn)
{
	uint64_t word = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || (pfn && pread(fd, &word, 8, (off_t)(pfn * 8)) != 8)) {
		printf("FAIL %s cannot be read: run this as root\n", path);
		_exit(2);
	}
	close(fd);
	return word;
}

/*** pfn */
static uint64_t pfn(pid_t pid, const char *addr)
{
	uint64_t word = pagemap(pid, addr);

	return word >> 63 ? word & ((1ULL << 55) - 1) : 0;
}

/*** drain */
/* Empty this CPU's batch of mlock work, so that page flags are what they are to be. */
static void drain(void)
{
	char *scratch = fenced(page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	*(volatile char *)scratch = 1;
	mlock(scratch, page);
	munlock(scratch, page);
	munmap(scratch - page, 3 * page);
}

/*** mlocked */
/* Which pages carry PG_mlocked (bit 33 of /proc/kpageflags). */
static char *mlocked(pid_t pid, const char *from, size_t size)
{
	char *found = text();

	for (size_t n = 0; n < size / page; n++) {
		uint64_t frame = pfn(pid, from + n * page);

		found[n] = frame && by_pfn("/proc/kpageflags", frame) >> 33 & 1 ? '1' : '0';
		found[n + 1] = 0;
	}
	return runs(found);
}

/*** shared_frames */
/* Which pages two processes have in common. */
static char *shared_frames(pid_t one, pid_t other, const char *from, size_t size)
{
	char *found = text();

	for (size_t n = 0; n < size / page; n++) {
		uint64_t frame = pfn(one, from + n * page);

		found[n] = frame && frame == pfn(other, from + n * page) ? '1' : '0';
		found[n + 1] = 0;
	}
	return runs(found);
}

/*** map_counts */
/* How often each page is mapped (/proc/kpagecount), a digit a page. */
static char *map_counts(pid_t pid, const char *from, size_t size)
{
	char *found = text();

	for (size_t n = 0; n < size / page; n++) {
		uint64_t frame = pfn(pid, from + n * page);

		found[n] = (char)('0' + (frame ? by_pfn("/proc/kpagecount", frame) : 0));
		found[n + 1] = 0;
	}
	return runs(found);
}

/*** first_bytes */
/* The first byte of every page, in hexadecimal. */
static char *first_bytes(const char *from, size_t size)
{
	char *found = text();

	for (size_t at = 0; at < size && strlen(found) < 8000; at += page)
		sprintf(found + strlen(found), "%02x", *(volatile unsigned char *)(from + at));
	return found;
}

/*** contents */
/* Memory as "4096x5a 4096x00", the bytes that follow each other counted. */
static char *contents(const char *from, size_t size)
{
	char *found = text();
	size_t at = 0, same;

	while (at < size && strlen(found) < 8000) {
		unsigned char byte = *(volatile unsigned char *)(from + at);

		for (same = 0; at < size && *(volatile unsigned char *)(from + at) == byte; at++)
			same++;
		if (same % page == 0)
			sprintf(found + strlen(found), "%s%zu pages %02x", *found ? ", " : "", same / page, byte);
		else
			sprintf(found + strlen(found), "%s%zu bytes %02x", *found ? ", " : "", same, byte);
	}
	return found;
}

/*** file_contents */
static char *file_contents(int fd, size_t size, off_t offset)
{
	static char data[1 << 16];
	ssize_t got = pread(fd, data, size < sizeof(data) ? size : sizeof(data), offset);

	return contents(data, got < 0 ? 0 : got);
}

/*** read_all */
static void read_all(const char *from, size_t size)
{
	for (size_t at = 0; at < size; at += page)
		(void)*(volatile const char *)(from + at);
}

/*** faults */
/* Minor and major page faults of this thread, "0 minor, 0 major", of one loop. */
static char *faults(char *from, size_t size, int byte, int writes)
{
	static char scratch[65536];
	struct rusage before, after;
	char *found = text();
	volatile char sink;

	sched_yield();
	memset(scratch, 1, sizeof(scratch));
	sprintf(found, "%d minor, %d major", 0, 0);
	for (int dry = 3; dry >= 0; dry--) {
		volatile char *at = dry ? scratch : from;
		size_t length = dry ? sizeof(scratch) : size;

		getrusage(RUSAGE_THREAD, &before);
		for (size_t n = 0; n < length; n += 64) {
			if (writes)
				at[n] = (char)byte;
			else
				sink = at[n];
		}
		getrusage(RUSAGE_THREAD, &after);
	}
	(void)sink;
	if (writes)
		memset(from, byte, size);
	sprintf(found, "%ld minor, %ld major", after.ru_minflt - before.ru_minflt,
		after.ru_majflt - before.ru_majflt);
	return found;
}

/*** faults_writing */
static char *faults_writing(char *from, size_t size, int byte)
{
	return faults(from, size, byte, 1);
}

/*** faults_reading */
static char *faults_reading(char *from, size_t size)
{
	return faults(from, size, 0, 0);
}

/*** memlock_limit */
/* RLIMIT_MEMLOCK of a process (0: this one): the soft limit; the hard one if it is below. */
static long memlock_limit(pid_t pid, rlim_t soft)
{
	struct rlimit limit;

	if (prlimit(pid, RLIMIT_MEMLOCK, NULL, &limit))
		return -1;
	limit.rlim_cur = soft;
	if (soft > limit.rlim_max)
		limit.rlim_max = soft;
	return prlimit(pid, RLIMIT_MEMLOCK, &limit, NULL);
}

/*** memlock_limits */
static long memlock_limits(pid_t pid, rlim_t soft, rlim_t hard)
{
	struct rlimit limit = { soft, hard };

	return prlimit(pid, RLIMIT_MEMLOCK, &limit, NULL);
}

/*** capability */
/* Make a capability effective, or not: this thread, capset(2). */
static long capability(int number, int effective)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];
	unsigned int bit = 1U << number % 32;

	if (syscall(SYS_capget, &head, data))
		return -1;
	if (effective)
		data[number / 32].effective |= bit;
	else
		data[number / 32].effective &= ~bit;
	return syscall(SYS_capset, &head, data);
}

/*** write_proc_mem */
/* Write through /proc/PID/mem, whatever the protection. */
static long write_proc_mem(const char *addr, int byte, size_t size)
{
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	char part[1] = { (char)byte };
	long done = fd < 0 ? -1 : 0;

	for (size_t at = 0; at < size && done == 0; at++)
		if (pwrite(fd, part, 1, (off_t)(unsigned long)(addr + at)) != 1)
			done = -1;
	close(fd);
	return done;
}

/*** one_cpu */
/* Stay on one CPU: its batch serves all. */
static void one_cpu(void)
{
	cpu_set_t all, one;

	CPU_ZERO(&one);
	sched_getaffinity(0, sizeof(all), &all);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &all)) {
			CPU_SET(cpu, &one);
			break;
		}
	sched_setaffinity(0, sizeof(one), &one);
}

/*** user_namespace */
static long user_namespace(void)
{
	char map[32];
	int uid = geteuid(), gid = getegid(), fd;

	if (unshare(CLONE_NEWUSER))
		return -1;
	for (int n = 0; n < 3; n++) {
		const char *files[] = { "/proc/self/setgroups", "/proc/self/uid_map", "/proc/self/gid_map" };

		snprintf(map, sizeof(map), n ? "0 %d 1" : "deny", n == 1 ? uid : gid);
		fd = open(files[n], O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, map, strlen(map)) < 0)
			return -1;
		close(fd);
	}
	return 0;
}

/*** actors */
/*
 * Processes and threads take turns: every one of them goes through script() from its beginning
 * (a fork: from where it was), does what stands in BY(itself) and passes over the rest. PARENT lets
 * the others go on and waits for them; variables that are SHARED travel along.
 */
extern char __start_shared[], __stop_shared[];
SHARED pid_t pids[ACTORS];
static int turn_of[ACTORS], skip_to, ended[ACTORS];

#define GO(who) (200 + 4 * (who))
#define DONE(who) (202 + 4 * (who))

static int self(void)
{
	pid_t me = syscall(SYS_gettid);

	for (int who = ACTORS - 1; who > 0; who--)
		if (pids[who] == me)
			return who;
	return 0;
}

static void send_shared(int fd)
{
	if (write(fd + 1, __start_shared, __stop_shared - __start_shared) < 0)
		_exit(2);
}

static void receive_shared(int fd)
{
	static char room[8192];
	size_t size = __stop_shared - __start_shared, have = 0;

	while (have < size) {
		ssize_t got = read(fd, room + have, size - have);

		if (got <= 0)
			_exit(2);
		have += got;
	}
	memcpy(__start_shared, room, size);
}

static int has_ended(pid_t pid)
{
	char path[64], state[512] = "";
	int fd;
	ssize_t got;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 1;
	got = read(fd, state, sizeof(state) - 1);
	close(fd);
	return got <= 0 || strstr(state, ") Z") || strstr(state, ") X");
}

static int begins(int who)
{
	int me = self();

	turn_of[me]++;
	if (me == who) {
		if (turn_of[me] <= skip_to)
			return 0;
		if (who)
			receive_shared(GO(who));
		return 1;
	}
	if (me == 0 && !ended[who]) {
		struct pollfd answer = { DONE(who), POLLIN, 0 };

		send_shared(GO(who));
		while (poll(&answer, 1, 5) == 0)
			if (has_ended(pids[who]) && poll(&answer, 1, 0) == 0) {
				ended[who] = 1;
				return 0;
			}
		receive_shared(DONE(who));
	}
	return 0;
}

static int ends(int who)
{
	if (who && self() == who)
		send_shared(DONE(who));
	return 0;
}

#define BY(who) for (int turn = begins(who); turn; turn = ends(who))

static void open_pipes(void)
{
	for (int who = 1; who < ACTORS; who++)
		for (int end = 0; end < 2; end++) {
			int ends[2];

			if (pipe(ends) || dup2(ends[0], (end ? DONE(who) : GO(who))) < 0 ||
			    dup2(ends[1], (end ? DONE(who) : GO(who)) + 1) < 0)
				_exit(2);
			close(ends[0]);
			close(ends[1]);
		}
}

/*** fork_actor */
static void fork_actor(int who)
{
	int turns = turn_of[self()];
	pid_t parent = getpid(), pid = fork();

	if (pid < 0)
		_exit(2);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(2);
		pid = getpid();
		turn_of[who] = turns;
	}
	pids[who] = pid;
}

/*** thread_actor */
static int thread_main(void *unused)
{
	(void)unused;
	script();
	syscall(SYS_exit, 0);
	return 0;
}

static void thread_actor(int who)
{
	static char stacks[ACTORS][65536] __attribute__((aligned(64)));
	int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;

	if (clone(thread_main, stacks[who] + 65536 - 64, flags | CLONE_PARENT_SETTID, NULL, &pids[who]) < 0)
		_exit(2);
}

/*** exec_actor */
/* Execute this program anew in place of the process: it goes on with its next turn. */
static void exec_actor(void)
{
	char who[16], turns[16];

	snprintf(who, sizeof(who), "%d", self());
	snprintf(turns, sizeof(turns), "%d", turn_of[self()]);
	send_shared(GO(self())); /* to itself: memory goes, the pipe stays */
	execl("/proc/self/exe", "case", who, turns, NULL);
	_exit(2);
}

/*** after_exec */
static void after_exec(int who, int turns)
{
	receive_shared(GO(who));
	skip_to = turns;
	send_shared(DONE(who));
}

/*** check_end */
/* The process has ended by this signal; 0: it has left by itself. */
static void check_end(const char *what, int who, int number)
{
	int status = 0;

	waitpid(pids[who], &status, 0);
	check_number(what, WIFSIGNALED(status) ? WTERMSIG(status) : 0, number);
}
