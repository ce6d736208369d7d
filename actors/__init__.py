"""One partner: the pure rules, the actor that serialises them, and the ports it speaks through."""
