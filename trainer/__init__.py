"""ReCon on points and cached teacher targets: the model, its training loop, and the probes behind `recon-train`."""
