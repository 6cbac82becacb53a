-- Whose tunnels a token was made to look at: the id of a token, `admin`, or NULL for its own. It acts for that user.

ALTER TABLE tokens ADD COLUMN reads TEXT;
