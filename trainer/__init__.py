"""ReCon on points and cached teacher targets: the model, its training loop, and the probes behind `recon-train`."""

if __name__ == "trainer":
    from recon.former_names import moved, stands_aside

    if not stands_aside("trainer"):
        raise moved("trainer")
