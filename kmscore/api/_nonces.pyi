from typing import Final

NEW: Final = 0
SEEN: Final = 1
FULL: Final = 2

def put_in(table: memoryview[int], value: int) -> int: ...
def holds(table: memoryview[int], value: int) -> int: ...
