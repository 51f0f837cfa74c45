"""Tables of text."""


def in_columns(rows, left=None):
    """Lines of a table, its columns as wide as they have to be, two spaces apart. rows: lists of text, of one length; left: so many columns
    are flush left and the others flush right (None: all left)."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    left = len(widths) if left is None else left
    return ["  ".join(cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
            for row in rows]
