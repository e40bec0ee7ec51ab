/*
 * A libibverbs of any release, as far as a provider sees one while it is loaded and opens a device: made from the
 * recorded facts of that release, which other_libibverbs.h has (written by tests/releases.rs). And one that lies about
 * its release, for each variable of the environment below.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "other_libibverbs.h" /* OPS, REGISTER, CONTEXT_SIZE, PRIV, COMP_MASK, SYMBOLS */

#define IBV_CONTEXT_SIZE 328
#define NO_SLOT 0x7fffffff

struct op { const char *name; int slot; };
#define ROW(name, slot) { #name, slot },
static const struct op ops[] = { OPS(ROW) };
#define COUNT ((int)(sizeof(ops) / sizeof(ops[0])))

#define STUB(name) void name(void); void name(void) { abort(); }
SYMBOLS(STUB)

static int lie(const char *name)
{
	const char *text = getenv(name);
	return text ? atoi(text) : -1;
}

/* The op that this libibverbs reads at a place of the table: the release's own, unless it lies. */
static const struct op *op_at(int place)
{
	int swapped = lie("SWAPPED"), dropped = lie("DROPPED");

	if (swapped >= 0 && place == swapped)
		return &ops[place + 1];
	if (swapped >= 0 && place == swapped + 1)
		return &ops[place - 1];
	if (dropped >= 0 && place >= dropped)
		place++;
	return place < COUNT ? &ops[place] : NULL;
}

static int count(void)
{
	return COUNT - (lie("DROPPED") >= 0) + (lie("ADDED") >= 0);
}

static char *ibv_context_of(char *verbs_context)
{
	int grown = lie("GROWN");
	return verbs_context + CONTEXT_SIZE - IBV_CONTEXT_SIZE + (grown > 0 ? grown : 0);
}

void verbs_set_ops(char *verbs_context, void *const *table);
void verbs_set_ops(char *verbs_context, void *const *table)
{
	void **own = (void **)(*(char **)(verbs_context + PRIV) + 24);
	int place;

	for (place = 0; place < count(); place++) {
		const struct op *op = op_at(place);
		if (!table[place])
			continue;
		own[place] = table[place];
		if (op && op->slot != NO_SLOT)
			*(void **)(ibv_context_of(verbs_context) + op->slot) = table[place];
	}
}

void *ibv_qp_to_qp_ex(char *qp);
void *ibv_qp_to_qp_ex(char *qp)
{
	int elsewhere = lie("COMP_MASK_AT");
	return *(unsigned *)(qp + (elsewhere >= 0 ? elsewhere : COMP_MASK)) & 2 ? qp : NULL;
}

void *_verbs_init_and_alloc_context(void *device, int fd, size_t size, size_t offset, unsigned driver);
void *_verbs_init_and_alloc_context(void *device, int fd, size_t size, size_t offset, unsigned driver)
{
	char *block = calloc(1, size), *context = block + offset;

	(void)driver;
	*(void **)(context + PRIV) = calloc(1, 4096);
	*(void **)ibv_context_of(context) = device;
	*(int *)(ibv_context_of(context) + 264) = fd;
	return block;
}

/* The answer is all zero: the caller made it so. */
int ibv_cmd_get_context(void);
int ibv_cmd_get_context(void) { return 0; }
#if PABI >= 33
int ibv_cmd_query_device_any(void);
int ibv_cmd_query_device_any(void) { return 0; }
#else
int ibv_cmd_query_device(void);
int ibv_cmd_query_device(void) { return 0; }
int ibv_cmd_query_device_ex(void);
int ibv_cmd_query_device_ex(void) { return 0; }
#endif
#if HAS_LOG
void __verbs_log(void *context, unsigned level, const char *format, ...);
void __verbs_log(void *context, unsigned level, const char *format, ...)
{
	(void)context, (void)level, (void)format;
}
#endif

static char *registered;

void REGISTER(void *device_ops);
void REGISTER(void *device_ops) { registered = device_ops; }

/*
 * Loads a provider and opens a device by it. Prints, for each op, its name and where in the provider the function lies
 * that this release would call for it: by its own table, and by the ibv_context where it reads it there.
 */
int load_and_open(const char *path);
int load_and_open(const char *path)
{
	char device[1024] = { 0 }, *context;
	int fd = memfd_create("uar", 0), place;
	Dl_info info;

	if (ftruncate(fd, 1 << 16) || !dlopen(path, RTLD_NOW)) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	if (!registered) {
		puts("refused");
		return 0;
	}
	/* alloc_context, in both forms of verbs_device_ops */
	context = (*(char *(**)(void *, int, void *))(registered + 40))(device, fd, NULL);
	if (!context)
		return 1;
	for (place = 0; place < COUNT; place++) {
		char *own = ((char **)(*(char **)(context + PRIV) + 24))[place];
		char *there = own;

		if (ops[place].slot != NO_SLOT)
			there = *(char **)(ibv_context_of(context) + ops[place].slot);
		if (there != own)
			return 1;
		if (!own)
			printf("%s -\n", ops[place].name);
		else if (dladdr(own, &info))
			printf("%s %lx\n", ops[place].name, (unsigned long)(own - (char *)info.dli_fbase));
	}
	return 0;
}
