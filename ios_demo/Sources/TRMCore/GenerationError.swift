import Foundation

/// What keeps a text from being written, in sentences for a user.
public enum GenerationError: LocalizedError, Equatable {
    /// A setting is out of its range.
    case setting(name: String, must: String, found: String)
    /// A key that no setting has.
    case unknownKey(name: String)
    /// A bias is not "word=amount".
    case bias(text: String, largest: Double)
    /// A word to favour is no single token.
    case biasTokens(word: String, tokens: [Int32])
    /// A token id is outside the vocabulary.
    case token(id: Int, vocabulary: Int, place: String)
    /// Two things that must be of the same vocabulary are not.
    case vocabularies(expected: Int, found: Int, place: String)
    /// The prompt is empty or leaves no room.
    case prompt(tokens: Int, context: Int)
    /// The model cannot be read at this depth.
    case depth(found: Int, allowed: [Int])
    /// Tokens were added to a text that has no room for them.
    case room(position: Int, added: Int, context: Int)
    /// A score is NaN or infinite.
    case score(id: Int, value: Double)
    /// Every token is forbidden.
    case nothingAllowed(vocabulary: Int, banned: Int)

    public var errorDescription: String? {
        switch self {
        case .setting(let name, let must, let found):
            "\(name) must \(must), got \(found)."
        case .unknownKey(let name):
            "There is no setting named \(name); remove it or correct its name."
        case .bias(let text, let largest):
            "A bias must be \"word=X\" or \"#id=X\" with X from -\(largest) to \(largest), got \"\(text)\"."
        case .biasTokens(let word, let tokens):
            "A bias must be for one token, got \"\(word)\", which is \(tokens.count): \(listed(tokens))."
        case .token(let id, let vocabulary, let place):
            "Token ids in the \(place) must be from 0 to \(vocabulary - 1), got \(id)."
        case .vocabularies(let expected, let found, let place):
            "The \(place) must have \(expected) entries, one for each token, got \(found)."
        case .prompt(let tokens, let context):
            "The prompt must have 1 to \(context - 1) tokens, as the context is \(context), got \(tokens)."
        case .depth(let found, let allowed):
            "The depth must be one of \(listed(allowed)), got \(found)."
        case .room(let position, let added, let context):
            "The context holds \(context) tokens and \(position) are in it, so 1 to \(context - position) can be added,"
                + " got \(added)."
        case .score(let id, let value):
            "The model's scores must be numbers, got \(value) for token \(id); load the model again or choose another"
                + " compute unit."
        case .nothingAllowed(let vocabulary, 0):
            "The model must allow at least one token, but it forbade all \(vocabulary)."
        case .nothingAllowed(_, let banned):
            "The bans must leave at least one token that the model allows, but \(banned) are banned; ban less."
        }
    }
}

private func listed(_ numbers: [some BinaryInteger]) -> String {
    numbers.prefix(8).map { "\($0)" }.joined(separator: " ") + (numbers.count > 8 ? " and more" : "")
}
