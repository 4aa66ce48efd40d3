"""The stream: frames, their wire form, sockets, accounts, recordings and replay. Imports nothing else of ours, and no
torch."""
