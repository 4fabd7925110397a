"""Models on disk and in other hands: own folders, stock models, ONNX, peft."""
