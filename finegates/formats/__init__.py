"""Saving and exporting models: own folders, stock models, ONNX, peft."""
