import Foundation

/// Why a tokenizer cannot be read, or cannot do what it was asked.
public enum TokenizerError: Error, Equatable {
    case unreadable(file: String)
    case tooLarge(limit: Int)
    case damaged(bytes: Int)
    /// The model does not keep these rules, so its ids or its text would not be those of `trm_mlx`.
    case foreign(without: [String])
    case idOutOfRange(id: Int32, vocabulary: Int)
    case roleOutOfTurn(message: Int, expected: ChatMessage.Role, found: ChatMessage.Role)
    case noUserMessage(messages: Int)
    case replyWithoutQuestion(messages: Int)
}

extension TokenizerError: LocalizedError {
    public var errorDescription: String? {
        switch self {
        case .unreadable(let file):
            "The tokenizer file “\(file)” cannot be read. Export the model again, or copy the whole folder."
        case .tooLarge(let limit):
            "A tokenizer must be at most \(limit) bytes, and this one is larger."
        case .damaged(let bytes):
            "The tokenizer must be a whole SentencePiece model, got \(bytes) bytes that are not. Copy the file again."
        case .foreign(let rules):
            "The tokenizer must be one that trm_mlx trained, got one without: \(rules.joined(separator: ", "))."
        case .idOutOfRange(let id, let vocabulary):
            "Token ids must be from 0 to \(vocabulary - 1), got \(id). Model and tokenizer may not belong together."
        case .roleOutOfTurn(let message, let expected, let found):
            "Message \(message) must be from \(expected.rawValue) (user and assistant take turns, a system message "
                + "may only come first), got one from \(found.rawValue)."
        case .noUserMessage(let messages):
            "A chat must have a user message, got \(messages) messages and none from the user."
        case .replyWithoutQuestion(let messages):
            "A reply must follow a user message, got a chat of \(messages) messages that ends with the assistant's."
        }
    }
}
