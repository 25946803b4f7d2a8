"""What happens when servers, links, disks and nodes fail: real servers, real faults, in bounded time."""
