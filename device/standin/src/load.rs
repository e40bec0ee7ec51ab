//! What happens when the library is loaded, in this order. The loader calls nothing else of ours.

use crate::kernel::site;
use crate::support::fresh;

#[used]
// SAFETY: the loader calls the entries of this section once; `at_load` has the right type and needs nothing but the C
// library, which is initialised before us.
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    fresh::at_load();
    site::at_load();
    // A test changes nothing in its own process.
    #[cfg(not(test))]
    {
        // While the environment is still the one that the program was started with.
        crate::support::config::get();
        crate::interpose::signals::resolve();
        crate::interpose::preload::resolve();
        crate::interpose::library::resolve();
        crate::interpose::netdev::resolve();
    }
}
