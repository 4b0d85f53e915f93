// Records what a process does to the files below one folder, and makes chosen operations fail, vanish or be the last.
//
// LD_PRELOAD this library and set, all but the first optional:
//   EDGEKIT_SHIM_ROOT     the folder, as realpath(3) gives it
//   EDGEKIT_SHIM_ARM      nothing is recorded or counted before this file exists
//   EDGEKIT_SHIM_LOG      the log: records as `struct head` below, each written by one call
//   EDGEKIT_SHIM_KINDS    operations that count as points, as a bit mask of `enum op`; default: all that change files
//   EDGEKIT_SHIM_KILL     "before:N" or "after:N": SIGKILL at the N-th point
//   EDGEKIT_SHIM_FAIL     "ERRNO:N:once" or "ERRNO:N:on": the N-th point fails (and all later ones)
//   EDGEKIT_SHIM_HEAL     while this file exists nothing fails
//   EDGEKIT_SHIM_SWALLOW  "N": the N-th fsync or fdatasync returns 0, does nothing and is not recorded
// Children of the process run without it. Opening ROOT/.mark/TEXT records TEXT and fails with ENOENT: a program's own
// notes, in order with its operations. What changes files and is not understood is recorded as UNSEEN.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum op { OPEN = 1, WRITE, TRUNC, RENAME, LINK, SYMLINK, UNLINK, RMDIR, MKDIR, FSYNC, FDATASYNC, SYNC, READ, MARK, UNSEEN };
enum { CREATED = 1, TRUNCATED = 2, FOLDER = 4, FAILED = 8, OTHER_NAME = 16 };

struct head {
    uint32_t magic;  // 'edgk'
    uint16_t op, flags;
    int32_t error;
    uint32_t path, other, data;  // bytes that follow, in this order
    uint64_t inode;
    int64_t offset;  // of a write; the new size of a TRUNC
};

static const char *root, *arm, *heal;
static size_t root_length;
static int log_fd = -1, armed, kill_before, kill_at, fail_with, fail_at, fail_on, swallow_at;
static unsigned kinds = (1u << READ) - 2;  // all that change something
static int points, syncs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, name)

static ssize_t real_writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return real(fd, parts, count);
}

static char *take(const char *name) {
    char *value = getenv(name);
    char *kept = value ? strdup(value) : NULL;
    unsetenv(name);
    return kept;
}

__attribute__((constructor)) static void start(void) {
    char *word = take("EDGEKIT_SHIM_LOG");
    if (word) {
        int fd = open(word, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 500);
        close(fd);
    }
    arm = take("EDGEKIT_SHIM_ARM");
    heal = take("EDGEKIT_SHIM_HEAL");
    if ((word = take("EDGEKIT_SHIM_KINDS"))) kinds = strtoul(word, NULL, 0);
    if ((word = take("EDGEKIT_SHIM_KILL"))) {
        kill_before = word[0] == 'b';
        kill_at = atoi(strchr(word, ':') + 1);
    }
    if ((word = take("EDGEKIT_SHIM_FAIL"))) {
        char how[8] = "";
        sscanf(word, "%d:%d:%7s", &fail_with, &fail_at, how);
        fail_on = !strcmp(how, "on");
    }
    if ((word = take("EDGEKIT_SHIM_SWALLOW"))) swallow_at = atoi(word);
    take("LD_PRELOAD");
    root = take("EDGEKIT_SHIM_ROOT");
    root_length = root ? strlen(root) : 0;
}

static int is_armed(void) {
    if (!armed && root) armed = !arm || !access(arm, F_OK);
    return armed;
}

static int below(const char *path) {
    return root && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

// The path of an open file, and whether that is one of ours.
static int path_of(int fd, char *path) {
    char link[64];
    if (!root || fd == log_fd) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    char *gone = strstr(path, " (deleted)");
    if (gone) *gone = 0;
    return below(path);
}

// The full path of a name: its folder resolved, itself not followed.
static int full(int folder, const char *name, char *path) {
    char raw[2 * PATH_MAX], parent[PATH_MAX];
    if (!root || !name) return 0;
    if (name[0] == '/') {
        snprintf(raw, sizeof raw, "%s", name);
    } else {
        char base[PATH_MAX];
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length <= 0) return 0;
            base[length] = 0;
        }
        snprintf(raw, sizeof raw, "%s/%s", base, name);
    }
    size_t end = strlen(raw);
    while (end > 1 && raw[end - 1] == '/') raw[--end] = 0;
    char *slash = strrchr(raw, '/');
    if (!slash) return 0;
    *slash = 0;
    if (!realpath(raw[0] ? raw : "/", parent)) return 0;  // the call fails by itself
    if (snprintf(path, PATH_MAX, "%s/%s", parent, slash + 1) >= PATH_MAX) return 0;
    return below(path);
}

static uint64_t inode_of(const char *path) {
    struct stat about;
    return lstat(path, &about) ? 0 : about.st_ino;
}

static void record(enum op op, int flags, int error, const char *path, const char *other, uint64_t inode, int64_t offset,
                   const void *data, size_t length) {
    if (log_fd < 0) return;
    struct head head = {.magic = 0x6b676465, .op = op, .flags = flags, .error = error, .path = strlen(path),
                        .other = other ? strlen(other) : 0, .data = length, .inode = inode, .offset = offset};
    struct iovec parts[4] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)other, head.other}, {(void *)data, length}};
    real_writev(log_fd, parts, 4);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

// Before an operation: count it, die, or say that it fails. The lock is held until `after`.
static int before(enum op op, const char *path) {
    pthread_mutex_lock(&lock);
    if (!is_armed() || !(kinds & 1u << op)) return 0;
    points++;
    if (kill_before && points == kill_at) die();
    int fails = fail_with && (points == fail_at || (fail_on && points > fail_at)) && !(heal && !access(heal, F_OK));
    if (fails) record(op, FAILED, fail_with, path, NULL, 0, 0, NULL, 0);
    return fails;
}

static void after(enum op op) {
    int saved = errno;
    if (armed && kinds & 1u << op && !kill_before && kill_at && points == kill_at) die();
    pthread_mutex_unlock(&lock);
    errno = saved;
}

static int refuse(void) {
    pthread_mutex_unlock(&lock);
    errno = fail_with;
    return -1;
}

static void note(const char *what, const char *path) {
    pthread_mutex_lock(&lock);
    if (is_armed()) record(UNSEEN, 0, 0, path, what, 0, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
}

// --- names ---

static int real_openat(int folder, const char *name, int flags, mode_t mode) {
    REAL(int, "openat", int, const char *, int, ...);
    return real(folder, name, flags, mode);
}

static int opened(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    const char *mark = root && name && below(name) ? strstr(name + root_length, "/.mark/") : NULL;
    if (mark) {
        pthread_mutex_lock(&lock);
        if (is_armed()) record(MARK, 0, 0, mark + 7, NULL, 0, 0, NULL, 0);
        pthread_mutex_unlock(&lock);
        errno = ENOENT;
        return -1;
    }
    if (!full(folder, name, path)) return real_openat(folder, name, flags, mode);
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & (O_CREAT | O_TRUNC))) return real_openat(folder, name, flags, mode);
    if ((flags & O_TMPFILE) == O_TMPFILE) note("O_TMPFILE", path);
    if (before(OPEN, path)) return refuse();
    struct stat about;
    int there = !stat(path, &about);
    int fd = real_openat(folder, name, flags, mode), saved = errno;
    if (fd >= 0 && is_armed()) {
        int how = (there ? 0 : CREATED) | (flags & O_TRUNC && there && about.st_size ? TRUNCATED : 0);
        path_of(fd, path);  // a link was followed
        record(OPEN, how, 0, path, NULL, inode_of(path), 0, NULL, 0);
    }
    errno = saved;
    after(OPEN);
    return fd;
}

#define MODE(last) \
    mode_t mode = 0; \
    if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) { \
        va_list more; \
        va_start(more, last); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *name, int flags, ...) {
    MODE(flags)
    return opened(AT_FDCWD, name, flags, mode);
}
int open64(const char *name, int flags, ...) {
    MODE(flags)
    return opened(AT_FDCWD, name, flags, mode);
}
int openat(int folder, const char *name, int flags, ...) {
    MODE(flags)
    return opened(folder, name, flags, mode);
}
int openat64(int folder, const char *name, int flags, ...) {
    MODE(flags)
    return opened(folder, name, flags, mode);
}
int __open_2(const char *name, int flags) { return opened(AT_FDCWD, name, flags, 0); }
int __open64_2(const char *name, int flags) { return opened(AT_FDCWD, name, flags, 0); }
int __openat_2(int folder, const char *name, int flags) { return opened(folder, name, flags, 0); }
int __openat64_2(int folder, const char *name, int flags) { return opened(folder, name, flags, 0); }
int creat(const char *name, mode_t mode) { return opened(AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return opened(AT_FDCWD, name, O_WRONLY | O_CREAT | O_TRUNC, mode); }

// What the C library opens for itself does not come through our open.
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        char whole[PATH_MAX]; \
        if (strpbrk(mode, "wa+") && full(AT_FDCWD, path, whole)) note(#name, whole); \
        REAL(FILE *, #name, const char *, const char *); \
        return real(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

// An operation on two names; what stood under the second one before is the new inode's business.
#define TWO_NAMES(op, from_folder, from, to_folder, to, call) \
    char first[PATH_MAX], second[PATH_MAX]; \
    int ours = full(to_folder, to, second); \
    ours |= full(from_folder, from, first); \
    if (!ours) return call; \
    if (before(op, first)) return refuse(); \
    uint64_t inode = inode_of(first); \
    struct stat kind; \
    int folder_flag = !lstat(first, &kind) && S_ISDIR(kind.st_mode) ? FOLDER : 0; \
    int done = call, saved = errno; \
    if (!done && is_armed()) record(op, folder_flag, 0, first, second, inode, 0, NULL, 0); \
    errno = saved; \
    after(op); \
    return done

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    TWO_NAMES(RENAME, AT_FDCWD, from, AT_FDCWD, to, real(from, to));
}
int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    TWO_NAMES(RENAME, from_folder, from, to_folder, to, real(from_folder, from, to_folder, to));
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    char path[PATH_MAX];
    if (flags & RENAME_EXCHANGE && full(to_folder, to, path)) note("RENAME_EXCHANGE", path);
    REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
    TWO_NAMES(RENAME, from_folder, from, to_folder, to, real(from_folder, from, to_folder, to, flags));
}
int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    TWO_NAMES(LINK, AT_FDCWD, from, AT_FDCWD, to, real(from, to));
}
int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    TWO_NAMES(LINK, from_folder, from, to_folder, to, real(from_folder, from, to_folder, to, flags));
}

// An operation on one name that takes it away.
#define GOES(op, folder, name, call) \
    char path[PATH_MAX]; \
    if (!full(folder, name, path)) return call; \
    if (before(op, path)) return refuse(); \
    uint64_t inode = inode_of(path); \
    int done = call, saved = errno; \
    if (!done && is_armed()) record(op, 0, 0, path, NULL, inode, 0, NULL, 0); \
    errno = saved; \
    after(op); \
    return done

int unlink(const char *name) {
    REAL(int, "unlink", const char *);
    GOES(UNLINK, AT_FDCWD, name, real(name));
}
int rmdir(const char *name) {
    REAL(int, "rmdir", const char *);
    GOES(RMDIR, AT_FDCWD, name, real(name));
}
int remove(const char *name) {
    struct stat kind;
    return !lstat(name, &kind) && S_ISDIR(kind.st_mode) ? rmdir(name) : unlink(name);
}
int unlinkat(int folder, const char *name, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    enum op op = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    GOES(op, folder, name, real(folder, name, flags));
}

// An operation that makes a name.
#define COMES(op, folder, name, other, call) \
    char path[PATH_MAX]; \
    if (!full(folder, name, path)) return call; \
    if (before(op, path)) return refuse(); \
    int done = call, saved = errno; \
    if (!done && is_armed()) record(op, 0, 0, path, other, inode_of(path), 0, NULL, 0); \
    errno = saved; \
    after(op); \
    return done

int mkdir(const char *name, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    COMES(MKDIR, AT_FDCWD, name, NULL, real(name, mode));
}
int mkdirat(int folder, const char *name, mode_t mode) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    COMES(MKDIR, folder, name, NULL, real(folder, name, mode));
}
int symlink(const char *to, const char *name) {
    REAL(int, "symlink", const char *, const char *);
    COMES(SYMLINK, AT_FDCWD, name, to, real(to, name));
}
int symlinkat(const char *to, int folder, const char *name) {
    REAL(int, "symlinkat", const char *, int, const char *);
    COMES(SYMLINK, folder, name, to, real(to, folder, name));
}

// --- contents ---

static uint64_t inode_at(int fd, int64_t *size) {
    struct stat about;
    if (fstat(fd, &about)) return 0;
    if (size) *size = about.st_size;
    return about.st_ino;
}

static int64_t place(int fd) {
    int64_t size = 0;
    if (fcntl(fd, F_GETFL) & O_APPEND) {
        inode_at(fd, &size);
        return size;
    }
    return lseek(fd, 0, SEEK_CUR);
}

#define CONTENT(fd, at, data, call) \
    char path[PATH_MAX]; \
    if (!path_of(fd, path)) return call; \
    if (before(WRITE, path)) return refuse(); \
    int64_t offset = at; \
    ssize_t done = call; \
    int saved = errno; \
    if (done > 0 && is_armed()) record(WRITE, 0, 0, path, NULL, inode_at(fd, NULL), offset, data, done); \
    errno = saved; \
    after(WRITE); \
    return done

ssize_t write(int fd, const void *data, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    CONTENT(fd, place(fd), data, real(fd, data, count));
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t where) {
    REAL(ssize_t, "pwrite", int, const void *, size_t, off_t);
    CONTENT(fd, where, data, real(fd, data, count, where));
}
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t where) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    CONTENT(fd, where, data, real(fd, data, count, where));
}

// Several pieces, or the kernel's own copying: what was written is read back.
static void read_back(int fd, const char *path, int64_t offset, ssize_t done) {
    char link[64], *data = malloc(done);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int again = real_openat(AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
    ssize_t have = pread(again, data, done, offset);
    if (have == done) record(WRITE, 0, 0, path, NULL, inode_at(fd, NULL), offset, data, done);
    else record(UNSEEN, 0, 0, path, "read back", 0, 0, NULL, 0);
    close(again);
    free(data);
}

#define COPIED(fd, at, call) \
    char path[PATH_MAX]; \
    if (!path_of(fd, path)) return call; \
    if (before(WRITE, path)) return refuse(); \
    int64_t offset = at; \
    ssize_t done = call; \
    int saved = errno; \
    if (done > 0 && is_armed()) read_back(fd, path, offset, done); \
    errno = saved; \
    after(WRITE); \
    return done

ssize_t writev(int fd, const struct iovec *parts, int count) { COPIED(fd, place(fd), real_writev(fd, parts, count)); }
ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t where) {
    REAL(ssize_t, "pwritev", int, const struct iovec *, int, off_t);
    COPIED(fd, where, real(fd, parts, count, where));
}
ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t where) {
    REAL(ssize_t, "pwritev64", int, const struct iovec *, int, off64_t);
    COPIED(fd, where, real(fd, parts, count, where));
}
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t where, int flags) {
    REAL(ssize_t, "pwritev2", int, const struct iovec *, int, off_t, int);
    COPIED(fd, where < 0 ? place(fd) : where, real(fd, parts, count, where, flags));
}
ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off64_t where, int flags) {
    REAL(ssize_t, "pwritev64v2", int, const struct iovec *, int, off64_t, int);
    COPIED(fd, where < 0 ? place(fd) : where, real(fd, parts, count, where, flags));
}
ssize_t sendfile(int fd, int from, off_t *where, size_t count) {
    REAL(ssize_t, "sendfile", int, int, off_t *, size_t);
    COPIED(fd, place(fd), real(fd, from, where, count));
}
ssize_t sendfile64(int fd, int from, off64_t *where, size_t count) {
    REAL(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    COPIED(fd, place(fd), real(fd, from, where, count));
}
ssize_t copy_file_range(int from, off64_t *from_where, int fd, off64_t *where, size_t count, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    COPIED(fd, where ? *where : place(fd), real(from, from_where, fd, where, count, flags));
}

#define RESIZES(fd, size, call) \
    char path[PATH_MAX]; \
    if (!path_of(fd, path)) return call; \
    if (before(TRUNC, path)) return refuse(); \
    int done = call, saved = errno; \
    if (!done && is_armed()) record(TRUNC, 0, 0, path, NULL, inode_at(fd, NULL), size, NULL, 0); \
    errno = saved; \
    after(TRUNC); \
    return done

int ftruncate(int fd, off_t size) {
    REAL(int, "ftruncate", int, off_t);
    RESIZES(fd, size, real(fd, size));
}
int ftruncate64(int fd, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    RESIZES(fd, size, real(fd, size));
}
static int cut(const char *name, int64_t size) {
    int fd = open(name, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int done = ftruncate(fd, size), saved = errno;
    close(fd);
    errno = saved;
    return done;
}
int truncate(const char *name, off_t size) { return cut(name, size); }
int truncate64(const char *name, off64_t size) { return cut(name, size); }

static int64_t grown(int fd, int64_t end) {
    int64_t size = 0;
    inode_at(fd, &size);
    return size > end ? size : end;
}
int posix_fallocate(int fd, off_t from, off_t length) {
    REAL(int, "posix_fallocate", int, off_t, off_t);
    RESIZES(fd, grown(fd, from + length), real(fd, from, length));
}
int posix_fallocate64(int fd, off64_t from, off64_t length) {
    REAL(int, "posix_fallocate64", int, off64_t, off64_t);
    RESIZES(fd, grown(fd, from + length), real(fd, from, length));
}
int fallocate(int fd, int mode, off_t from, off_t length) {
    char path_[PATH_MAX];
    if (mode && path_of(fd, path_)) note("fallocate", path_);
    REAL(int, "fallocate", int, int, off_t, off_t);
    RESIZES(fd, grown(fd, from + length), real(fd, mode, from, length));
}

// --- making it last ---

static int synced(int fd, enum op op, int (*real)(int)) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return real(fd);
    if (before(op, path)) return refuse();
    if (is_armed() && ++syncs == swallow_at) {
        after(op);
        return 0;
    }
    int done = real(fd), saved = errno;
    struct stat about;
    int flags = !fstat(fd, &about) && S_ISDIR(about.st_mode) ? FOLDER : 0;
    if (!done && is_armed()) record(op, flags, 0, path, NULL, about.st_ino, 0, NULL, 0);
    errno = saved;
    after(op);
    return done;
}
int fsync(int fd) {
    REAL(int, "fsync", int);
    return synced(fd, FSYNC, real);
}
int fdatasync(int fd) {
    REAL(int, "fdatasync", int);
    return synced(fd, FDATASYNC, real);
}
int syncfs(int fd) {
    REAL(int, "syncfs", int);
    return synced(fd, SYNC, real);
}
void sync(void) {
    REAL(void, "sync", void);
    real();
    pthread_mutex_lock(&lock);
    if (is_armed()) record(SYNC, 0, 0, root, NULL, 0, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
}
// sync_file_range(2) promises nothing for a power cut: it is let through unrecorded.

// --- reading, only where it can be made to fail ---

#define READS(fd, call) \
    char path[PATH_MAX]; \
    if (!(kinds & 1u << READ) || !path_of(fd, path)) return call; \
    if (before(READ, path)) return refuse(); \
    ssize_t done = call; \
    after(READ); \
    return done

ssize_t read(int fd, void *data, size_t count) {
    REAL(ssize_t, "read", int, void *, size_t);
    READS(fd, real(fd, data, count));
}
ssize_t pread64(int fd, void *data, size_t count, off64_t where) {
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t);
    READS(fd, real(fd, data, count, where));
}
