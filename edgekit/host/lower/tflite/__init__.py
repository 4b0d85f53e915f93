"""ONNX (with QDQ) -> TFLite: writer (the file), values (layouts, codes), and the operators by family."""
