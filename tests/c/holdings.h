/* What a process holds, counted: a program that gives back all it took ends with what it began with. */
#ifndef HOLDINGS_H
#define HOLDINGS_H

#include "rc.h"

static inline size_t descriptors_open(void)
{
    size_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder);
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

static inline size_t lines_of_maps(void)
{
    size_t count = 0;
    int c;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    while ((c = fgetc(maps)) != EOF)
        count += c == '\n';
    fclose(maps);
    return count;
}

#endif
