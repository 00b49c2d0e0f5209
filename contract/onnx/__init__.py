"""Reading ONNX files without onnx: the wire format, the graph, what a device accepts."""
