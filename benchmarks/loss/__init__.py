"""What clients lose while links break and servers go away: notify and its peers, side by side on the same schedule."""
