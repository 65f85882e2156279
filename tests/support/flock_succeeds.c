/* flock as on a file system without a lock manager for several machines: it always succeeds. */
int flock(int descriptor, int operation) {
    (void)descriptor;
    (void)operation;
    return 0;
}
