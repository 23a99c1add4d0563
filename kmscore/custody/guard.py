"""The guard of `token.object` (RELIABILITY R-1): SoftHSM 2.6.1 rewrites it in place at every login, and a kill or a full disk in the
middle empties it, which loses every key of the token. A verified copy in the home brings all of them back.

Everything here runs under the home lock, which every kmscore login holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kmscore.custody.fragments import TOKEN_OBJECT
from kmscore.custody.objectfile import TokenObject, parse_token, read_token
from kmscore.disk import make_directory, sync_directory, sync_file, write_file
from kmscore.errors import SetupError


@dataclass(frozen=True, slots=True)
class Guard:
    """Watches over the token in one of the directories under `tokens`, with the copy at `saved`."""

    tokens: Path
    saved: Path

    def saved_token(self) -> TokenObject | None:
        return read_token(self.saved)

    def token_directory(self) -> Path | None:
        """The directory of our token, or None when there is none. Somebody may have put other tokens beside it.

        SoftHSM names the directory by a UUID and takes its last 16 hexadecimal digits as the token's serial number.
        """
        if not self.tokens.is_dir():
            return None
        directories = [path for path in self.tokens.iterdir() if path.is_dir()]
        if (saved := self.saved_token()) is not None:
            ours = [path for path in directories if path.name.replace("-", "").endswith(saved.serial)]
            if not ours and directories:
                raise SetupError(
                    f"{self.tokens} holds another token than the one that {self.saved} is a copy of (serial {saved.serial}): "
                    "restore both from the same backup"
                )
            return ours[0] if ours else None
        whole = [path for path in directories if read_token(path / TOKEN_OBJECT) is not None]
        if len(whole) > 1:
            raise SetupError(f"{self.tokens} holds {len(whole)} tokens and {self.saved} is missing: leave only kmscore's own there")
        if not whole and directories:
            raise SetupError(
                f"the token in {directories[0]} is damaged ({TOKEN_OBJECT} is not whole) and there is no saved copy at {self.saved}: "
                "restore both from backup. Only if no key was ever made in it: remove the directory, and a new token is made"
            )
        return whole[0] if whole else None

    def restore_if_broken(self, directory: Path) -> bool:
        """Before C_Initialize: put the saved copy back if token.object is missing or not whole. Answers whether it did.

        Raises SetupError when it is broken and the copy is no better.
        """
        live = directory / TOKEN_OBJECT
        if read_token(live) is not None:
            return False
        data = self.saved.read_bytes() if self.saved.exists() else b""
        if parse_token(data) is None:
            raise SetupError(f"{live} is not whole and there is no whole copy at {self.saved}: restore both from backup")
        try:
            write_file(live, data)
        except OSError as error:
            raise SetupError(f"cannot restore {live} from {self.saved}: {error.strerror}") from error
        return True

    def settle(self, directory: Path) -> None:
        """After a login, which rewrote token.object without syncing it: make it durable if whole and refresh the copy, else restore it."""
        live = directory / TOKEN_OBJECT
        try:
            data = live.read_bytes() if live.exists() else b""
            if parse_token(data) is None:
                self.restore_if_broken(directory)
                return
            sync_file(live)
            sync_directory(directory)
            self.save(data)
        except OSError as error:
            raise SetupError(f"cannot make {live} durable after the login: {error.strerror}") from error

    def save(self, data: bytes) -> None:
        """Keep `data`, a whole token.object, as the copy."""
        if parse_token(data) is None:
            raise ValueError("not a whole token.object")
        make_directory(self.saved.parent)
        if not self.saved.exists() or self.saved.read_bytes() != data:
            write_file(self.saved, data)
