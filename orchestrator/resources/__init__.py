"""The Ray of a sweep: started or joined; its nodes, their room, and the wait for more of them."""
