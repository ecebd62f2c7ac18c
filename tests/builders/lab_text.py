"""A lab file that is right, as text to be spoiled."""

GOOD = dict(
    devices=[
        dict(name="a", address="127.0.0.1:5000", experts=[0, 1]),
        dict(name="b", address="[::1]:1", experts=[1, 3]),
    ]
)
