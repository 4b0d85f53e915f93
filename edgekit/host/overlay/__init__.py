"""Choose an overlay's folding, estimate its resources, write its Vivado project. What runs it is runtime/overlay."""
