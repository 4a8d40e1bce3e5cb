"""Reading videos: open and probe, choose times, decode, and keep the frames. What a frame is used for is elsewhere."""
