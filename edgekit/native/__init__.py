"""C kernels behind one C ABI. `door` opens plans that run on them, `plan` reads and writes plans."""
