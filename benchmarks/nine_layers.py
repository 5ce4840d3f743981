def run_nine_layers(out, seconds, *, device, substrate=None, config="nine-layers-unicode"):
    return {"stub": True}
