// Servers that do what few do, but may: rare MODE PORT. Linked statically, so that each system call is their own.
#include "serve.h"
#include <pthread.h>
#include <sched.h>

static void *with_own_files(void *unused) {
    (void)unused;
    if (unshare(CLONE_FILES)) die("unshare");
    // The numbers differ from those of the first thread's table.
    for (int n = 0; n < 5; n++) open("/dev/null", O_RDONLY);
    return accept_loop((void *)(long)listener(AF_INET, 0));
}

// The thread that listens has descriptors of its own.
static void own_files(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, with_own_files, NULL);
    pthread_join(thread, NULL);
}

static void *when_alone(void *unused) {
    (void)unused;
    char path[64], status = 'R';
    // Until the first thread has ended.
    for (snprintf(path, sizeof path, "/proc/%d/stat", getpid()); status != 'Z'; usleep(1000)) {
        FILE *stat = fopen(path, "r");
        if (!stat || fscanf(stat, "%*d (%*[^)]) %c", &status) != 1) die("stat");
        fclose(stat);
    }
    return accept_loop((void *)(long)listener(AF_INET, 0));
}

static void first_ended(void) {
    pthread_t thread;
    pthread_create(&thread, NULL, when_alone, NULL);
    pthread_exit(NULL);
}

int main(int argc, char **argv) {
    const char *mode = argc > 1 ? argv[1] : "";
    port = argc > 2 ? atoi(argv[2]) : 0;
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(mode, "own-files")) own_files();
    if (!strcmp(mode, "first-ended")) first_ended();
    fprintf(stderr, "rare: unknown mode %s\n", mode);
    return 2;
}
