/*
 * other_release LIBRARY PROVIDER: the provider on a libibverbs of another release (other_libibverbs.c).
 *
 * Counts the panics of the provider, by standing in front of the unwinder that raises them: there is one in a process.
 */
#include <dlfcn.h>
#include <stdio.h>

static int raised;

int _Unwind_RaiseException(void *exception);
int _Unwind_RaiseException(void *exception)
{
	void *unwinder = dlopen("libgcc_s.so.1", RTLD_NOW);
	int (*raise)(void *) = (int (*)(void *))dlsym(unwinder, "_Unwind_RaiseException");

	raised++;
	return raise(exception);
}

int main(int argc, char **argv)
{
	void *library = argc == 3 ? dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) : NULL;
	int (*load_and_open)(const char *), result;

	if (!library) {
		fprintf(stderr, "%s\n", argc == 3 ? dlerror() : "usage: other_release LIBRARY PROVIDER");
		return 2;
	}
	load_and_open = (int (*)(const char *))dlsym(library, "load_and_open");
	result = load_and_open(argv[2]);
	printf("panics %d\n", raised);
	return result;
}
