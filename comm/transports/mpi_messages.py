"""Messages on their way between processes of MPI."""

from __future__ import annotations

from ..errors import MismatchError, RankFailure, require_length
from .mpi_library import GIVEN_UP, MPI, is_of_lost


class Message:
    """One to a rank of a group, until it has ended."""

    def __init__(self, request: MPI.Request, peer: int) -> None:
        self._request, self._peer = request, peer

    def __del__(self) -> None:
        # MPI may still read or write its memory, which the request keeps.
        if self._request != MPI.REQUEST_NULL:
            GIVEN_UP.append(self._request)

    def done(self) -> bool:
        return self._test()

    def _test(self, status: MPI.Status | None = None) -> bool:
        try:
            return self._request.Test(status)
        except MPI.Exception as error:
            if not is_of_lost(error):
                raise
            raise RankFailure(f"rank {self._peer} has died", [self._peer]) from None


class Receipt(Message):
    """One from a rank.

    Attributes:
        nbytes: its length, once it is there.
    """

    def __init__(
        self, request: MPI.Request, nbytes: int, source: int, *, exact: bool = True
    ) -> None:
        super().__init__(request, source)
        self.nbytes, self._exact = nbytes, exact
        self._status, self._here = MPI.Status(), False

    def done(self) -> bool:
        if not self._here:
            try:
                self._here = self._test(self._status)
            except MPI.Exception as error:
                if error.Get_error_class() != MPI.ERR_TRUNCATE:
                    raise
                raise MismatchError(
                    f"the message from rank {self._peer} must have {self.nbytes} bytes, got more"
                ) from None
            if self._here:
                count = self._status.Get_count(MPI.BYTE)
                if self._exact:
                    require_length(count, self.nbytes, self._peer)
                self.nbytes = count
        return self._here
