"""Reading videos: open and probe files, choose sample times, decode frames and store them."""
