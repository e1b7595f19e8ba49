/*
 * Sockets of AF_VSOCK for a guest's shell.
 *
 *   vsock listen PORT COMMAND...    for each connection run the command, the stream as its 0 and 1
 *   vsock connect PORT COMMAND...   the same for one connection to the host
 *
 * The first goes on in the background: it listens when it returns. Exit code 1 and a line on standard
 * error when there is no connection. Source: vsock(7).
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static int fail(const char *what)
{
    fprintf(stderr, "vsock: %s: %s\n", what, strerror(errno));
    return 1;
}

static int run(int connection, char **command)
{
    if (dup2(connection, 0) < 0 || dup2(connection, 1) < 0)
        return fail("dup2");
    close(connection);
    execvp(command[0], command);
    return fail(command[0]);
}

static int serve(int fd, char **command)
{
    if (listen(fd, 64) < 0)
        return fail("listen");
    signal(SIGCHLD, SIG_IGN);
    if (daemon(1, 1) < 0)
        return fail("daemon");
    for (;;) {
        int connection = accept(fd, NULL, NULL);
        if (connection < 0)
            return fail("accept");
        if (fork() == 0) {
            close(fd);
            exit(run(connection, command));
        }
        close(connection);
    }
}

int main(int count, char **words)
{
    if (count < 4 || (strcmp(words[1], "listen") != 0 && strcmp(words[1], "connect") != 0)) {
        fprintf(stderr, "usage: vsock listen|connect PORT COMMAND...\n");
        return 2;
    }
    int listens = strcmp(words[1], "listen") == 0;
    struct sockaddr_vm address = {
        .svm_family = AF_VSOCK,
        .svm_port = (unsigned)strtoul(words[2], NULL, 10),
        .svm_cid = listens ? VMADDR_CID_ANY : VMADDR_CID_HOST,
    };
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0)
        return fail("socket");
    if (listens) {
        if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
            return fail("bind");
        return serve(fd, words + 3);
    }
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return fail("connect");
    return run(fd, words + 3);
}
