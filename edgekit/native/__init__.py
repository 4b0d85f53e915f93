"""C kernels behind one C ABI. Import `edgekit.native.door` to call them."""
