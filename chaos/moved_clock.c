/* The wall clock of a Python process, moved while it runs: preloaded by chaos/clocks.py, and told by a mapped file.
 *
 * Only CLOCK_REALTIME is moved, and the deadlines that are told by it; the monotonic clock stays the kernel's. A process
 * that is not Python's (Ray's GCS and raylet) or is the acquirer simulator (an outside party) keeps the right time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t none = 0;
static const volatile int64_t *offset_s = &none;

/* A deadline since boot is not so late for decades, one of the wall clock not so early since 2001. */
static const time_t WALL_CLOCK_S_MIN = 1000000000;

#define NEXT(name) \
    static __typeof__(&name) next; \
    if (next == NULL) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Where glibc has an older function of this name, too, the newer one is wanted. */
#define NEXT_OF(name, version) \
    static __typeof__(&name) next; \
    if (next == NULL) next = (__typeof__(&name))dlvsym(RTLD_NEXT, #name, version); \
    if (next == NULL) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    char program[4096] = {0};
    const char *file = getenv("MOVED_CLOCK_FILE");
    const char *process = getenv("BULKHEAD_PROCESS");
    if (file == NULL || (process != NULL && strstr(process, "/acquirer") != NULL)) return;
    if (readlink("/proc/self/exe", program, sizeof(program) - 1) < 0) return;
    const char *name = strrchr(program, '/');
    if (name == NULL || strncmp(name, "/python", 7) != 0) return;
    int descriptor = open(file, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof(*offset_s), PROT_READ, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped != MAP_FAILED) offset_s = mapped;
}

static int is_wall_clock(clockid_t clock) { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE; }

static struct timespec right(const struct timespec *deadline) {
    struct timespec found = *deadline;
    if (found.tv_sec > WALL_CLOCK_S_MIN) found.tv_sec -= *offset_s;
    return found;
}

int clock_gettime(clockid_t clock, struct timespec *told) {
    NEXT_OF(clock_gettime, "GLIBC_2.17");
    int result = next(clock, told);
    if (result == 0 && is_wall_clock(clock)) told->tv_sec += *offset_s;
    return result;
}

int gettimeofday(struct timeval *restrict told, void *restrict zone) {
    NEXT(gettimeofday);
    int result = next(told, zone);
    if (result == 0 && told != NULL) told->tv_sec += *offset_s;
    return result;
}

time_t time(time_t *told) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told != NULL) *told = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *told, int base) {
    NEXT(timespec_get);
    int result = next(told, base);
    if (result == TIME_UTC) told->tv_sec += *offset_s;
    return result;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict deadline) {
    NEXT_OF(pthread_cond_timedwait, "GLIBC_2.3.2");
    struct timespec until = right(deadline);
    return next(condition, mutex, &until);
}

int pthread_cond_clockwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, clockid_t clock,
                           const struct timespec *restrict deadline) {
    NEXT(pthread_cond_clockwait);
    struct timespec until = right(deadline);
    return next(condition, mutex, clock, &until);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict deadline) {
    NEXT(pthread_mutex_timedlock);
    struct timespec until = right(deadline);
    return next(mutex, &until);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict deadline) {
    NEXT_OF(sem_timedwait, "GLIBC_2.34");
    struct timespec until = right(deadline);
    return next(semaphore, &until);
}
