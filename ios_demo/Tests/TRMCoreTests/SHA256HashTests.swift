import Foundation
import Testing

@testable import TRMCore

@Suite struct SHA256HashTests {
    /// The examples of FIPS 180-4 and of NIST's CAVP.
    static let examples = [
        ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
        ),
        (
            "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
            "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1"
        ),
    ]

    @Test(arguments: examples)
    func examplesOfTheStandard(text: String, expected: String) {
        #expect(SHA256Hash.hexadecimal(of: Array(text.utf8)) == expected)
    }

    @Test func aMillionLettersInUnevenParts() {
        var hash = SHA256Hash()
        let letters = [UInt8](repeating: 0x61, count: 997)
        for _ in 0..<1003 { hash.update(letters) }
        hash.update(letters[..<9])
        #expect(hash.hexadecimal() == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
    }

    /// Every place where a block, its length or its padding can end: the hash of all the hashes, from hashlib.
    @Test func everyLengthUpToThreeBlocks() {
        let bytes = (0..<192).map { UInt8($0) }
        var all = SHA256Hash()
        for size in 0...192 {
            var hash = SHA256Hash()
            hash.update(Data(bytes[..<(size / 3)]))
            hash.update(bytes[(size / 3)..<size])
            #expect(hash.finish() == hash.finish())
            all.update(hash.finish())
        }
        #expect(all.hexadecimal() == "79eb9ac3f5b94a477808fa851afb214408e787ed21459d0503b2fac4a445fee6")
    }
}
