/* How often this process image has been forked since the extension was loaded. */
#ifndef KMS_FORK_H
#define KMS_FORK_H

/* Grows by one in every child. An object that remembers another value was made by a parent. */
extern volatile int kms_forks;

/* Registers the child handler; idempotent. Returns 0, or an errno value. */
int kms_fork_watch(void);

#endif
