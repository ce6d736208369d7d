"""A bank's side to pay against: an outside party over HTTP with its own durable record. Imports nothing of ours."""
