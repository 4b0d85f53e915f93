"""C kernels behind one C ABI. `door` calls them, `packing` lays values out as their bits."""
