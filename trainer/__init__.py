"""ReCon on points and cached teacher targets: the model, its training loop, and the probes behind `recon-train`."""

if __name__ == "trainer":
    raise ImportError("no module 'trainer' any more: it is recon.trainer (from recon.trainer import ...)")
