"""What looks after stores: verify, mend, merge, compare, gc, stats, preview, export."""
