// SIGINT and SIGTERM, while Python cannot hear them: see watchdog.py.
// All that the handlers call may be called in a signal handler.

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static struct sigaction python[65];
static volatile sig_atomic_t heard;
static pid_t process;
static int out, null;
static double grace;
static const char *line;

static void leave(int number) {
    if (isatty(out) && write(out, "\r\033[K", 4) < 0) {}
    if (write(out, line, strlen(line)) < 0) {}
    _exit(128 + heard);
}

static void hear(int number) {
    if (getpid() != process) { /* between fork and exec */
        signal(number, SIG_DFL);
        raise(number);
        return;
    }
    if (heard)
        leave(number);
    int before = errno;
    heard = number;
    dup2(null, 2);
    struct itimerval timer = {{0, 0}, {(long)grace, (long)(grace * 1e6) % 1000000}};
    setitimer(ITIMER_REAL, &timer, 0);
    python[number].sa_handler(number);
    errno = before;
}

extern "C" void arm(int out_, int null_, double grace_, const char *line_) {
    const int numbers[] = {SIGINT, SIGTERM};
    process = getpid(), out = out_, null = null_, grace = grace_, line = strdup(line_);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    sigfillset(&action.sa_mask);
    action.sa_handler = leave;
    sigaction(SIGALRM, &action, 0);
    sigemptyset(&action.sa_mask);
    action.sa_handler = hear;
    for (int number : numbers) {
        sigaction(number, 0, &python[number]);
        if (python[number].sa_handler != SIG_IGN && python[number].sa_handler != SIG_DFL)
            sigaction(number, &action, 0);
    }
}
