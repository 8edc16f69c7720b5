"""Export: the model as MindIR graphs for a deployment, or as a folder of safetensors for other tools."""
