#include "fork.h"

#include <pthread.h>

volatile int kms_forks = 0;

static void in_child(void)
{
    kms_forks++;
}

int kms_fork_watch(void)
{
    static int watching = 0; /* Called at import only, so the import lock guards it. */
    int rc;

    if (watching)
        return 0;
    rc = pthread_atfork(0, 0, in_child);
    if (rc == 0)
        watching = 1;
    return rc;
}
