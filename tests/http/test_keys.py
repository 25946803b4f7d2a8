from twisted.trial.unittest import TestCase

from notify.config import Api, ConfigError
from notify.http import ApiKeys, digests, read_keys
from notify.http.answers import Refused
from tests.support.http import temporary_folder

ONE, TWO = "1-sixteen-characters", "2-sixteen-characters"


class ReadKeysTest(TestCase):
    def file(self, data: bytes) -> str:
        path = temporary_folder(self) / "keys"
        path.write_bytes(data)
        return str(path)

    def test_joins_the_configuration_and_the_file(self) -> None:
        path = self.file(f"# keys\n\n  {TWO}  \n".encode())
        self.assertEqual(read_keys(Api(keys=(ONE,), keys_file=path), "x.toml"), (ONE, TWO))
        self.assertEqual(read_keys(Api(), "x.toml"), ())

    def test_says_what_is_wrong_without_quoting_a_key(self) -> None:
        for api in (
            Api(keys=("sesame",)),
            Api(keys=(ONE, "sesame " * 5)),
            Api(keys=("sesamé" * 5,)),
            Api(keys_file=self.file(b"sesame\n")),
            Api(keys_file=self.file(b"\xffsesame-sesame-sesame\n")),
            Api(keys_file="/nowhere/keys"),
        ):
            error = self.assertRaises(ConfigError, read_keys, api, "x.toml")
            self.assertTrue(str(error).startswith("x.toml: 'api.keys"), error)
            self.assertNotIn("sesam", str(error))


class ApiKeysTest(TestCase):
    def test_any_of_the_keys_is_good_and_the_scheme_has_no_case(self) -> None:
        keys = ApiKeys(lambda: digests([ONE, TWO]))
        for header in (f"Bearer {ONE}", f"bearer {TWO}", f"BEARER  {ONE}"):
            keys.check(header.encode())

    def test_replaced_keys_are_no_good_any_more(self) -> None:
        good = [ONE]
        keys = ApiKeys(lambda: digests(good))
        keys.check(f"Bearer {ONE}".encode())
        good[:] = [TWO]
        keys.check(f"Bearer {TWO}".encode())
        refused = self.assertRaises(Refused, keys.check, f"Bearer {ONE}".encode())
        self.assertEqual(refused.status, 401)
        good.clear()
        self.assertEqual(self.assertRaises(Refused, keys.check, f"Bearer {TWO}".encode()).status, 403)
