"""Instructions in our own words for tasks that come without one.

`WORDINGS` has the tasks of `function_vectors` (Todd et al. 2024), which are published as pairs of
input and output with nothing but a name, and the few tasks of the other collections whose
definition is missing.
"""

# Name in `function_vectors` -> (kind that is wanted, kind of all other words).
ODD_ONES = {
    "adjective_v_verb": ("an adjective", "verbs"),
    "animal_v_object": ("an animal", "objects"),
    "color_v_animal": ("a color", "animals"),
    "concept_v_object": ("an abstract concept", "concrete objects"),
    "fruit_v_animal": ("a fruit", "animals"),
    "object_v_concept": ("a concrete object", "abstract concepts"),
    "verb_v_adjective": ("a verb", "adjectives"),
}
WORDINGS: dict[str, tuple[str, ...]] = {
    "ag_news": (
        "Sort the news item into World, Sports, Business, Technology or Science.",
        "You are given the beginning of a news article. Name its section.",
        "Read the news text and answer with its topic in one word.",
        "Classify news by topic.",
    ),
    "antonym": (
        "Give the opposite of the word.",
        "You receive a word; reply with a word that means the contrary.",
        "Answer every word with its antonym and nothing else.",
        "Name a word whose meaning is opposed to that of the given one.",
        "Turn the word into its opposite.",
    ),
    "capitalize": (
        "Write the word with a capital letter at the beginning.",
        "Repeat the word, starting it with an upper-case letter.",
        "Capitalize the given word.",
        "Make the word look like the first of a sentence.",
    ),
    "capitalize_first_letter": (
        "Reply with the first letter of the word as a capital.",
        "Take the initial of the word and print it in upper case.",
        "Which letter does the word begin with? Answer with that letter, capitalized.",
        "Give only the first letter, in upper case.",
    ),
    "capitalize_last_letter": (
        "Reply with the last letter of the word as a capital.",
        "Take the final letter of the word and print it in upper case.",
        "Which letter does the word end with? Answer with that letter, capitalized.",
        "Give only the last letter, in upper case.",
    ),
    "capitalize_second_letter": (
        "Reply with the second letter of the word as a capital.",
        "Skip the first letter of the word and print the next one in upper case.",
        "Give only the letter in second place, capitalized.",
        "Which letter comes second in the word? Answer in upper case.",
    ),
    "commonsense_qa": (
        "Answer the question by the letter of the best option.",
        "Use common sense to choose among the options; give its letter only.",
        "You get a question with lettered choices. Reply with one letter.",
    ),
    "country-capital": (
        "Name the capital of the country.",
        "For each country, reply with the city where its government sits.",
        "You are given a country. Answer with its capital city.",
        "Which city is the capital of this nation?",
    ),
    "country-currency": (
        "Name the currency of the country.",
        "What money do people pay with in this country?",
        "You are given a country. Answer with its official currency.",
        "Reply with the currency that is used in the nation named.",
    ),
    "english-french": (
        "Translate the word into French.",
        "Say the English word in French.",
        "You get an English word; answer with the French one.",
        "What is this called in France?",
    ),
    "english-german": (
        "Translate the word into German.",
        "Say the English word in German.",
        "You get an English word; answer with the German one.",
        "What is this called in Germany?",
    ),
    "english-spanish": (
        "Translate the word into Spanish.",
        "Say the English word in Spanish.",
        "You get an English word; answer with the Spanish one.",
        "What is this called in Spain?",
    ),
    "landmark-country": (
        "Name the country in which the landmark lies.",
        "You are given a place of interest. Answer with its country.",
        "In which country would a visitor find this?",
        "Tell the country of each sight.",
    ),
    "lowercase_first_letter": (
        "Reply with the first letter of the word in lower case.",
        "Take the initial of the word and print it as a small letter.",
        "Give only the letter that the word begins with, not capitalized.",
        "Which letter comes first? Answer with the small letter.",
    ),
    "lowercase_last_letter": (
        "Reply with the last letter of the word in lower case.",
        "Take the final letter of the word and print it as a small letter.",
        "Give only the letter that the word ends with, not capitalized.",
        "Which letter comes last? Answer with the small letter.",
    ),
    "national_parks": (
        "Name the state of the USA in which the park lies.",
        "You are given a park or preserve of the United States. Answer with its state.",
        "In which American state is this?",
        "Tell where in the USA the protected area is, by state.",
    ),
    "next_capital_letter": (
        "Take the first letter of the word and answer with the next one in the alphabet, as a "
        "capital.",
        "Which letter follows the word's initial in the alphabet? Reply in upper case.",
        "Shift the first letter of the word by one and print it as a capital.",
    ),
    "next_item": (
        "Say what comes next: the following number, letter, day or month.",
        "You get an item of an ordered series. Answer with its successor.",
        "Continue the sequence by one item.",
        "Name the item that follows.",
    ),
    "park-country": (
        "Name the country in which the national park lies.",
        "You are given a national park. Answer with its country.",
        "To which country does this park belong?",
        "Tell the country of each park.",
    ),
    "person-instrument": (
        "Name the instrument that the musician plays.",
        "You are given a musician. Answer with the instrument this person is known for.",
        "What does this person play?",
        "Reply with the musician's instrument.",
    ),
    "person-occupation": (
        "Name the profession of the person.",
        "You are given somebody's name. Answer with what this person does for a living.",
        "What is this person's occupation?",
        "Reply with the job of the person named.",
    ),
    "person-sport": (
        "Name the sport of the athlete.",
        "You are given an athlete. Answer with the sport this person is known for.",
        "Which sport does this person play?",
        "Reply with the discipline of the sportsman or sportswoman.",
    ),
    "present-past": (
        "Put the verb into the past tense.",
        "You get a verb in the present; answer with its past form.",
        "Reply with the simple past of the verb.",
        "How does one say this about yesterday? Give the verb alone.",
    ),
    "prev_item": (
        "Say what comes before: the preceding number, letter, day or month.",
        "You get an item of an ordered series. Answer with its predecessor.",
        "Go back by one item in the sequence.",
        "Name the item that precedes.",
    ),
    "product-company": (
        "Name the company that makes the product.",
        "You are given a product. Answer with its manufacturer.",
        "Which company is behind this?",
        "Reply with the maker of each product.",
    ),
    "sentiment": (
        "Is the film review positive or negative?",
        "Judge the mood of the sentence: answer positive or negative.",
        "You read a sentence of a review. Say whether its author liked the film.",
        "Classify the sentiment of the text.",
    ),
    "singular-plural": (
        "Put the noun into the plural.",
        "You get one of something; write the word for several.",
        "Reply with the plural form of the word.",
        "Pluralize the noun.",
    ),
    "synonym": (
        "Give a word of the same meaning.",
        "You receive a word; reply with a synonym.",
        "Name another word that says the same.",
        "Replace the word by one with a similar meaning.",
    ),
    "word_length": (
        "Count the letters of the word.",
        "How many letters has the word? Answer with a number.",
        "Reply with the length of the word.",
        "You get a word; give the number of its letters.",
    ),
    "conll2003_location": (
        "Find the place that the text mentions.",
        "Copy the name of the location from the sentence.",
        "Which city, country or other place is named? Answer with its name.",
        "Extract the location.",
    ),
    "conll2003_organization": (
        "Find the organization that the text mentions.",
        "Copy the name of the company, club or institution from the sentence.",
        "Which organization is named? Answer with its name.",
        "Extract the organization.",
    ),
    "conll2003_person": (
        "Find the person that the text mentions.",
        "Copy the name of the person from the sentence.",
        "Who is named? Answer with the name.",
        "Extract the person.",
    ),
    "copa": (
        "Choose the more plausible cause or effect; answer A or B.",
        "A question about cause and effect has two options. Reply with the letter of the likelier.",
        "Decide which option fits better and give its letter.",
    ),
    "task114_is_the_given_word_longest": (
        "Is the given word the longest of the sentence? Answer Yes or No.",
        "You get a sentence and a word. Say Yes if no word of the sentence is longer, else No.",
        "Compare the word with all others of the sentence by length and reply Yes or No.",
    ),
    "task430_senteval_subject_count": (
        "Is the subject of the main clause singular or plural?",
        "Say Singular or Plural, for the grammatical number of the sentence's subject.",
        "You read a sentence. Does its main subject name one or several? Reply Singular or Plural.",
    ),
}


def _of_lists() -> dict[str, tuple[str, ...]]:
    found = {}
    for count, number in (("3", "three"), ("5", "five")):
        for place in ("first", "middle", "last"):
            found[f"choose_{place}_of_{count}"] = (
                f"Repeat the {place} of the {number} words.",
                f"You get {number} words. Answer with the one that stands {place}.",
                f"From the list, copy the {place} item.",
                f"Reply with the {place} word only.",
            )
        for place in ("first", "last"):
            found[f"alphabetically_{place}_{count}"] = (
                f"Of the {number} words, give the one that comes {place} in the alphabet.",
                f"Which word would stand {place} in a dictionary?",
                f"Order the list from A to Z and answer with its {place} word.",
                f"Reply with the alphabetically {place} word.",
            )
        for name, (wanted, others) in ODD_ONES.items():
            kind = wanted.split(" ", 1)[1]
            found[f"{name}_{count}"] = (
                f"One of the {number} words is {wanted}, the others are {others}. Name it.",
                f"Find the {kind} in the list.",
                f"Among {others}, pick out {wanted}.",
                f"Which of the {number} words is {wanted}? Answer with this word only.",
            )
    return found


WORDINGS |= _of_lists()
