/// One message of a conversation.
public struct ChatMessage: Sendable, Equatable {
    public enum Role: String, Sendable {
        case system, user, assistant
    }

    public var role: Role
    public var content: String

    public init(role: Role, content: String) {
        self.role = role
        self.content = content
    }
}

extension Tokenizer {
    /// The ids of a conversation, without bos or eos: each turn is its role's id, its text, the end id.
    ///
    /// User and assistant take turns, user first. A system message may stand before them: its text opens the
    /// first user turn, with a blank line after it.
    ///
    /// - Parameter reply: end with the assistant id, for the model to go on; the last message must be the user's.
    /// - Throws: `TokenizerError` if the roles are out of order.
    public func chat(_ messages: [ChatMessage], reply: Bool) throws -> [Int32] {
        var ids: [Int32] = []
        var opening = ""
        var expected = ChatMessage.Role.user
        for (number, message) in messages.enumerated() {
            if number == 0, message.role == .system {
                opening = message.content + "\n\n"
                continue
            }
            guard message.role == expected else {
                throw TokenizerError.roleOutOfTurn(message: number, expected: expected, found: message.role)
            }
            ids.append(expected == .user ? user : assistant)
            ids += encode(opening + message.content)
            ids.append(end)
            opening = ""
            expected = expected == .user ? .assistant : .user
        }
        if ids.isEmpty { throw TokenizerError.noUserMessage(messages: messages.count) }
        guard reply else { return ids }
        guard expected == .assistant else { throw TokenizerError.replyWithoutQuestion(messages: messages.count) }
        return ids + [assistant]
    }
}
