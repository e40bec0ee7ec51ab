/*
 * Two programs that meet over TCP: one waits on a port, the other goes there. Used by the programs
 * whose two sides are processes of their own. What goes wrong ends the program, as in rc.h.
 */
#ifndef MEET_H
#define MEET_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "rc.h"

/* A socket that accepts on `port`, from wherever: the other side may be in another virtual machine. */
static inline int listen_on(const char *port, int backlog)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    CHECK(fd >= 0);
    CHECK(!setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)));
    CHECK(!bind(fd, (struct sockaddr *)&place, sizeof(place)) && !listen(fd, backlog));
    return fd;
}

/* Small messages at once, not after a pause. */
static inline int hurry(int fd)
{
    int one = 1;
    CHECK(fd < 0 || !setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)));
    return fd;
}

/* Connects to `host`, or waits up to `seconds` for somebody who does if there is none. -1: nobody is there. */
static inline int meet(const char *port, const char *host, int seconds)
{
    if (host) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
        CHECK(fd >= 0);
        CHECK(inet_pton(AF_INET, host, &place.sin_addr) == 1);
        return connect(fd, (struct sockaddr *)&place, sizeof(place)) ? -1 : hurry(fd);
    }
    struct timeval patience = {.tv_sec = seconds};
    int listener = listen_on(port, 1);
    CHECK(!setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)));
    int fd = accept(listener, NULL, NULL);
    close(listener);
    /* An accepted socket may inherit it. */
    patience.tv_sec = 0;
    CHECK(fd < 0 || !setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)));
    return hurry(fd);
}

/* All of it; 0 when the other side is gone. */
static inline int tell(int fd, const void *bytes, size_t length)
{
    return send(fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static inline int hear(int fd, void *bytes, size_t length)
{
    return length == 0 || recv(fd, bytes, length, MSG_WAITALL) == (ssize_t)length;
}

#endif
