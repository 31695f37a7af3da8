"""S3."""


class Objects:
    def reset(self):
        pass

    def listing(self):
        return []

    def kept(self):
        return None

    def restore(self, kept):
        pass
