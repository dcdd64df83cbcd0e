def peers(rows, device, seconds, *, tiny):
    pass
