"""HTTP and the page, nothing else: bodies in, a Service asked, JSON out."""
