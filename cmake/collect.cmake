# Copies libvmw_pvrdma.so from where cargo put it below ${cargo} to ${built}: release/, or TARGET/release/.
file(GLOB found "${cargo}/release/libvmw_pvrdma.so" "${cargo}/*/release/libvmw_pvrdma.so")
set(newest "")
foreach(file IN LISTS found)
  # A tree that was built for another target before has both: the one that cargo just said is up to date is wanted.
  if(newest STREQUAL "" OR "${file}" IS_NEWER_THAN "${newest}")
    set(newest "${file}")
  endif()
endforeach()
if(newest STREQUAL "")
  message(FATAL_ERROR "cargo built no libvmw_pvrdma.so below ${cargo}")
endif()
file(COPY "${newest}" DESTINATION "${built}")
